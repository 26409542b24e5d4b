"""Second factors, and the challenges of log-ins that wait for one."""
