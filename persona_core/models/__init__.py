"""A model, its blocks, its chat template and its tokenizer."""

from persona_core.utils.lazy import lazy_names

__getattr__ = lazy_names(
    __name__, {"LanguageModel": "language_model", "load_model": "loading", "wrap_model": "loading"}
)
