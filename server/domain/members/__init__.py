"""The rules of profiles, settings, follows, overviews and scores."""
