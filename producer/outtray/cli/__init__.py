"""The command line: one file per question an admin asks. `main.run` starts it, `commands.register` lists its pages."""
