"""Which Ray, and whether a run can go on its nodes."""
