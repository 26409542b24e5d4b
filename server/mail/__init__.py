"""Where mail leaves the house: texts, and SMTP or a folder."""
