"""The study of the language recipes: rows of results, baselines, costs, and the page about them."""
