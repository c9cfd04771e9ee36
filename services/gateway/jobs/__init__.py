"""Runs and responses as durable jobs, which gateways hand to each other."""
