"""What can be built on Tandem, each with its real output."""
