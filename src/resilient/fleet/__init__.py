"""What many processes share through Redis or Valkey."""
