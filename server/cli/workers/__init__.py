"""Several worker processes behind one address, and the supervisor that runs them.

Only `worker` imports the application; the other modules are the supervisor's.
"""
