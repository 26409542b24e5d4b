"""UserService: profiles, settings, follows, overviews and scores."""
