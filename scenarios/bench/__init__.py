"""How fast is it here? Works, engines that carry them out, tables; `benchmarks/` uses them too."""
