"""The processes of `medseg serve`, the director among them, and who keeps them alive."""
