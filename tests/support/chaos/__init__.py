"""What experiments with faults are made of: servers that can be hurt, load whose every answer is checked, promises."""
