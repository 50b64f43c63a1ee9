"""The embedded engine: OneNet on torchvision and Lightning."""
