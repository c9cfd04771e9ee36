"""Gateway and decode front, with the engine replaced by a stub: real processes, real gRPC, real HTTP clients.

load process (HTTP) --- gateway process --- gRPC --- worker process: decode servicer, scheduler, stub engine
"""
