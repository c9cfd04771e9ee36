"""Admission: who may begin now, who waits in which order, and who is told to come back."""
