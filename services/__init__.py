"""The four services of Paidan. They know each other only through the facts in `shared.facts`."""
