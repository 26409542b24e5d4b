"""The rules of accounts: signing up, reading, changing, erasing and watching them."""
