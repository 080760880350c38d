"""Models: the adapters of Keras files and PyTorch modules to one internal form, and a small zoo."""
