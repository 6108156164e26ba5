"""Which modality the answers follow: attention, Shapley shares of coalitions, and a report of both."""
