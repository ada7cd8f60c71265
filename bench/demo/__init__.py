"""``demo``: stock SGLang and FlowPrefill under the same burst, watched live; a page at the end."""
