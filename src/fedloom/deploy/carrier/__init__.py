"""What carries calls and tasks: gRPC, a front for one port, and a fake for tests."""
