"""The processes of `medseg serve`, and who keeps them alive."""
