"""Settings of the course.  nbgrader reads them in the folder where it is started:

    cd notebooks/course
    nbgrader generate_assignment separation     # source/ -> release/, what students get
    nbgrader autograde separation               # submitted/<student>/separation/ -> autograded/, gradebook.db
    nbgrader generate_feedback separation       # autograded/ -> feedback/
"""

c = get_config()  # noqa: F821  nbgrader defines it

c.CourseDirectory.course_id = "pointseg"
c.ClearSolutions.code_stub = {"python": 'raise NotImplementedError("write this function")'}
c.ExecutePreprocessor.timeout = 600  # seconds a cell; the bench takes about a minute on an idle machine
