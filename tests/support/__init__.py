"""Code that several tests share, a module a subject: oracles, traffic, fakes, servers, processes, callers."""
