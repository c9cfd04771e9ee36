"""Who is in the cluster, in which role, with what model and load."""
