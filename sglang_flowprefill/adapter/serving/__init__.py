"""SGLang's scheduler process: overrides, the engine that the loop drives, its composition."""
