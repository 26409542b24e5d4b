"""What proves who somebody is: passwords, tokens, and the keys behind them."""
