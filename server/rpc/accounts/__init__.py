"""UserService over accounts: one by one, many at once, and what is held of one."""
