"""What a subcommand does when it is more than one call."""
