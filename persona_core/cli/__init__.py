"""The console command `persona`: one module a command. Options are read before torch is imported."""
