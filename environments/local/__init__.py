from mlops import forget_other_programs

forget_other_programs()
