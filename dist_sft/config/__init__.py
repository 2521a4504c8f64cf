"""The run file: frozen sections, YAML + key=value, errors by file:line, and the DeepSpeed JSON it is merged with."""
