"""One conversation as read by one model: the trace, its rows in a dataset, its figure and its view."""
