"""Deploy: a federation over a network; the data stay on the machines of the clients."""
