"""What a phase minimises: pure functions of parameters and a batch."""
