"""Data → features → tune → fit → evaluate → gate → bundle → register."""
