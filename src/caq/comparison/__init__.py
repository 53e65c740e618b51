"""`caq compare`: did a quantized model keep its alignment, where did it not, and how sure is that?"""
