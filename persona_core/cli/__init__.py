"""The console command `persona`, one module per command. Options are parsed before torch is imported."""
