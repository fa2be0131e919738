"""Who this process is, who runs beside it, and being asked to stop."""
