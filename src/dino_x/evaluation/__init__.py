"""How good a backbone's features are, beside the baselines that give the number a meaning."""
