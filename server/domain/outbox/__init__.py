"""What follows a change once it has committed: events told, mails sent."""
