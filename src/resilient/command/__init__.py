"""What the command `resilient` does; one module for each subcommand, imported when it is used."""
