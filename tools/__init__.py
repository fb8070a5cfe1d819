"""What the scripts need beside the method: errors, files, the machine, pictures. A reader of the method may skip it."""
