"""What a service stands on, as a picture."""
