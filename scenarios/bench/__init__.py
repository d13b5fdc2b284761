"""How fast is it here? Works, engines that carry them out, and tables; `benchmarks/` uses them too."""
