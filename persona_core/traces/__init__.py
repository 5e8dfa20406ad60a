"""One conversation as read by one model: the trace, its rows in a dataset, its figure and its view."""

from persona_core.utils.lazy import lazy_names

__getattr__ = lazy_names(__name__, {"Trace": "trace", "trace_figure": "figure", "standalone_html": "view.standalone"})
