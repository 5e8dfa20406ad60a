"""An OpenAI-compatible server whose chunks carry each token's trait scores: what `persona serve` starts."""
