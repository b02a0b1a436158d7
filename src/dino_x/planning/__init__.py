"""Will it fit, how long will it take, what will it cost? By calculation, and by a short trial."""
