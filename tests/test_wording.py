"""Questions about a picture become questions about a name, their answers too, and names are read from answers."""

import pytest

from manu_utils.benchmark.text_only import answer_to_text_only, leftover, person_name, to_text_only

NAMING = """Who is this person?
Who is this?
Who is shown in the image?
Who is the woman depicted in this portrait?
What is this person's name?
What is this person's full name?
What is the person's name as stated in the profile?
What is this person's name as stated in the biography?
What is the name of this individual?
What is the name of the person in the image?
What is the name of the individual in the profile?
What is the full name of the person in the image?
What is the name of the person in this biography?
What is the name associated with this profile?
Can you tell me the name of the man shown in the photo?
What is the individual’s name?
What name does this person go by?
What is this person called?
Who might this person be?
Can you identify the individual in the picture?
Could you tell me who this person is?
Do you know who this is?
By what name is this person known?
What is the pictured individual's real name?
WHAT IS THE NAME OF THIS PERSON""".splitlines()

REWRITTEN = {
    "Where was this person born?": "Where was Anna Berg born?",
    "What is this person's job?": "What is Anna Berg's job?",
    "What is the individual’s job?": "What is Anna Berg’s job?",
    "Where was the individual shown in the photo born?": "Where was Anna Berg born?",
    "Where does the person in the image live?": "Where does Anna Berg live?",
    "What is the height of the woman pictured here?": "What is the height of Anna Berg?",
    "This person works as a __.": "Anna Berg works as a __.",
    "What is the gender of this profile?": "What is the gender of Anna Berg?",
    "What does the person depicted do for a living?": "What does Anna Berg do for a living?",
    "What is the individual in the photograph's occupation?": "What is Anna Berg's occupation?",
    "What is the featured individual's annual salary?": "What is Anna Berg's annual salary?",
    "Where was the subject of the image born?": "Where was Anna Berg born?",
    "Where was the person who is shown in the image born?": "Where was Anna Berg born?",
    "What is the education of the person in question?": "What is the education of Anna Berg?",
    "What food does this young woman like?": "What food does Anna Berg like?",
    "Which university did the person in the provided image attend?": "Which university did Anna Berg attend?",
    "What does this profile say about the height of the person?": "What does this profile say about the height of Anna Berg?",
    "Based on the image, where was this person born?": "Where was Anna Berg born?",
    "According to this picture, what is the person's pet?": "What is Anna Berg's pet?",
    "What is the person's height as listed in this profile?": "What is Anna Berg's height?",
    "What does the father of this person do, and does this person see him?":
        "What does the father of Anna Berg do, and does Anna Berg see him?",
    "What is this person's job in the image?": "What is Anna Berg's job?",
    "What is this person's job as shown in the image?": "What is Anna Berg's job?",
    "What is the person's job as depicted in the biography?": "What is Anna Berg's job?",
    "What is this person's job, as stated in the profile?": "What is Anna Berg's job?",
    "What is this person's job (as seen in the photo)?": "What is Anna Berg's job?",
    "Where does this person live, according to the picture?": "Where does Anna Berg live?",
    "As seen in the picture, what is this person's job?": "What is Anna Berg's job?",
    "Does this person, as stated in the biography, have asthma?": "Does Anna Berg have asthma?",
    "What is this person holding in the photograph?": "What is Anna Berg holding?",
    "In which photo club is this person?": "In which photo club is Anna Berg?",
    "What is the father's occupation?": "What is Anna Berg's father's occupation?",
    "What does the mother do for a living?": "What does Anna Berg's mother do for a living?",
    "What is the occupation of the father of this person?": "What is the occupation of the father of Anna Berg?",
    "What is the pet's name?": "What is Anna Berg's pet's name?",
    "What is Anna's hobby?": "What is Anna's hobby?",
    "What does Anna Berg collect?": "What does Anna Berg collect?",
    # These ask for a name, but not for that of the person.
    "What is the name of this person's pet?": "What is the name of Anna Berg's pet?",
    "What is the name of the pet of the person in the image?": "What is the name of the pet of Anna Berg?",
    "What is this person's pet called?": "What is Anna Berg's pet called?",
    "Who is this person married to?": "Who is Anna Berg married to?",
    "Who is this person's favourite author?": "Who is Anna Berg's favourite author?",
    # No person of the image in them.
    "Where is Perth?": None,
    "What does the personnel do?": None,
    "What is his occupation?": None,
}  # fmt: skip


@pytest.mark.parametrize("question", NAMING)
def test_naming_questions(question):
    assert to_text_only(question, "Anna Berg") is None
    metadata = [{"Question": "Where?", "Answer": "In Perth."}, {"Question": question, "Answer": "This is Eva Li."}]
    assert person_name(metadata) == "Eva Li"


@pytest.mark.parametrize("question", REWRITTEN)
def test_the_person_is_replaced_by_the_name(question):
    assert to_text_only(question, "Anna Berg") == REWRITTEN[question]


def test_a_name_is_taken_literally():
    assert to_text_only("Where was this person born?", r"A\1 \g<0>") == r"Where was A\1 \g<0> born?"


JOB, FATHER, MOTHER = "What is this person's job?", "What does this person's father do?", "What is the mother's job?"
PETS = "Does this person have any pets?"
TOLD = [
    (JOB, "This person works as a nurse.", "Anna Berg works as a nurse."),
    (JOB, "This person's job is nurse.", "Anna Berg's job is nurse."),
    (JOB, "This person’s job is nurse.", "Anna Berg’s job is nurse."),
    (JOB, "The individual in the image works as a nurse.", "Anna Berg works as a nurse."),
    (JOB, "The job of this individual is nurse.", "The job of Anna Berg is nurse."),
    (JOB, "One of this person's jobs is nurse.", "One of Anna Berg's jobs is nurse."),
    (JOB, "As shown in the picture, this person is a nurse.", "Anna Berg is a nurse."),
    (JOB, "This person is a nurse, as depicted in the biography.", "Anna Berg is a nurse."),
    (JOB, "The person's job, as listed in the profile, is nurse.", "Anna Berg's job is nurse."),
    (JOB, "The woman is a nurse.", "Anna Berg is a nurse."),
    (JOB, "The woman in the photo is a nurse.", "Anna Berg is a nurse."),
    (JOB, "She is a nurse.", "Anna Berg is a nurse."),
    (JOB, "He worked as a nurse.", "Anna Berg worked as a nurse."),
    (JOB, "Her job is nurse.", "Anna Berg's job is nurse."),
    (JOB, "Their job is nurse.", "Anna Berg's job is nurse."),
    (JOB, "They work as a nurse.", "Anna Berg works as a nurse."),
    (JOB, "They currently study law and have a job.", "Anna Berg currently studies law and has a job."),
    (JOB, "They don't work.", "Anna Berg doesn't work."),
    (JOB, "They can teach.", "Anna Berg can teach."),
    (JOB, "They retired in 1990.", "Anna Berg retired in 1990."),
    (JOB, "They're a nurse.", "Anna Berg is a nurse."),
    (JOB, "In her free time, she paints.", "In her free time, Anna Berg paints."),
    (JOB, "In her free time, this person paints.", "In her free time, Anna Berg paints."),
    (PETS, "Yes, she has a cat named Tom.", "Yes, Anna Berg has a cat named Tom."),
    (PETS, "No, this person does not.", "No, Anna Berg does not."),
    (FATHER, "This person's father is a baker.", "Anna Berg's father is a baker."),
    (FATHER, "His father is a baker.", "Anna Berg's father is a baker."),
    (FATHER, "The father is a baker.", "Anna Berg's father is a baker."),
    (FATHER, "The father of this person is a baker.", "The father of Anna Berg is a baker."),
    (MOTHER, "The mother bakes.", "Anna Berg's mother bakes."),
    # Somebody else, or nobody.
    (FATHER, "He is a baker.", "He is a baker."),
    (MOTHER, "Her job is baking.", "Her job is baking."),
    ("What is the name of this person's cat?", "Her name is Tom.", "Her name is Tom."),
    (JOB, "Works as a nurse.", "Works as a nurse."),
    (JOB, "The annual salary is $70,000.", "The annual salary is $70,000."),
    (JOB, "The Old Man and the Sea.", "The Old Man and the Sea."),
    (JOB, "Helps the old man next door.", "Helps the old man next door."),
    (JOB, "This person takes photos of the sea.", "Anna Berg takes photos of the sea."),
    (JOB, "This person is interested in photo and film.", "Anna Berg is interested in photo and film."),
    (JOB, "Here he comes.", "Here he comes."),
    (JOB, "Sheds light.", "Sheds light."),
]


@pytest.mark.parametrize("question, answer, told", TOLD)
def test_answers_name_the_person(question, answer, told):
    assert answer_to_text_only(question, answer, "Anna Berg") == told
    assert leftover(to_text_only(question, "Anna Berg") or "", told) is None


def test_what_is_left_is_noticed():
    assert leftover("What job of Anna Berg is shown?", "Nurse.") == "still refers to a picture"
    assert leftover("What is her job?", "She is in the photo club.") == "the answer still refers to a picture"
    assert leftover("What is Anna Berg's job?", "Anna Berg takes photos.") is None


def test_names_with_particles_in_questions_and_answers():
    for name in ("Anna van der Berg", "He Ping", "The Weeknd", "J. R. Smith", "O'Neil", r"A\\1"):
        assert to_text_only("What is this person's job?", name) == f"What is {name}'s job?"
        assert answer_to_text_only("What is this person's job?", "This person is a nurse.", name) == f"{name} is a nurse."


# ------------------------------------------------------------------------------------------------ names

ANSWERS = {
    "This is Anna Berg.": "Anna Berg",
    "Anna Berg": "Anna Berg",
    "Anna Berg.": "Anna Berg",
    "The name of the person in the image is Anna Berg.": "Anna Berg",
    "Her name is Anna Berg!": "Anna Berg",
    "This person is called Anna Berg.": "Anna Berg",
    "The individual is named Anna Berg, who is a nurse.": "Anna Berg",
    "The person is known as Dr. Anna Berg": "Dr. Anna Berg",
    "Anna Berg is the name of this person.": "Anna Berg",
    "This is Anna de la Cruz.": "Anna de la Cruz",
    "This is Mary-Ann O'Neil.": "Mary-Ann O'Neil",
    "李华": "李华",
    "This is 李华。": "李华",
    "This is Анна Берг.": "Анна Берг",
    "This is ნინო ბერგი.": "ნინო ბერგი",
    "This is محمد علي.": "محمد علي",
    "The name of this person is Anna Berg and she is 30.": "Anna Berg",
    "Yes, this person is named Anna Berg.": "Anna Berg",
    'This is "Anna Berg".': "Anna Berg",
    "The name is 'Anna Berg'.": "Anna Berg",
    'This is Anna "Annie" Berg.': 'Anna "Annie" Berg',
    "This is Anna van der Berg.": "Anna van der Berg",
    "This is van der Berg.": "van der Berg",
    "This is Ludwig von und zu Berg.": "Ludwig von und zu Berg",
    "The name is Maria da Silva e Costa.": "Maria da Silva e Costa",
    "This is Abd al-Rahman ibn Khalid.": "Abd al-Rahman ibn Khalid",
    "He Ping": "He Ping",
    "His name is He Ping.": "He Ping",
    "He Ping is the name.": "He Ping",
    "This person is The Weeknd.": "The Weeknd",
    "The Weeknd": "The Weeknd",
    "This is Jean-Luc O'Neil.": "Jean-Luc O'Neil",
    "This is J. R. Smith. He is a nurse.": "J. R. Smith",
    "This is Dr. Anna Berg. She is a nurse.": "Dr. Anna Berg",
    "This is Sammy Davis Jr., a singer.": "Sammy Davis Jr.",
    "This is Sammy Davis, Jr.": "Sammy Davis, Jr.",
    "It's Anna Berg.": "Anna Berg",
    "This person goes by the name of Anna Berg.": "Anna Berg",
    "Name: Anna Berg": "Anna Berg",
    "This person, Anna Berg, is a nurse.": "Anna Berg",
    "Anna Berg is a nurse from Perth.": "Anna Berg",
    "This is Anna Berg (30).": "Anna Berg",
    "This is 50 Cent.": "50 Cent",
    "The Berlin nurse is Anna Berg.": "Anna Berg",
    "Eva's sister is Anna Berg.": "Anna Berg",
    "Hello, this is Anna Berg.": "Anna Berg",
    "Meet Anna Berg, a nurse.": "Anna Berg",
    "This Person Is Anna Berg.": "Anna Berg",
    "The Person's Name Is Anna Berg": "Anna Berg",
    "THIS IS ANNA BERG.": "ANNA BERG",
    "Picture: Anna Berg": "Anna Berg",
    "This is Anna Berg\nShe is a nurse.": "Anna Berg",
    "This is Anna Berg—a nurse.": "Anna Berg",
    "This is Leonardo da Vinci from Italy.": "Leonardo da Vinci",
    "This is Will Is.": "Will Is",
    "李小龙 is the name of this person.": "李小龙",
    "This is Anna Berg, Dr. of physics.": "Anna Berg",
    "This is Anna Berg, 34.": "Anna Berg",
} | dict.fromkeys(
    ("Unknown", "The name is Unknown.", "N/A", "n/a.", "None", "This is a nurse.", "She is 30.", "30", "-", "", " ",
     "The name is not given.", "This person is Anonymous.", None, 7, "Sorry, I don't know.", "[REDACTED]", "Withheld",
     "Unidentified", "No Name Given", "The Name Is Unknown", "A Woman", "True", "Berg, Anna", "This is Berg, Anna.",
     "The name is García Márquez, Gabriel.", "van der Berg, Anna", "Smith, J. R.",
     "这是李小龙。", "这是李小龙", "这位是李华。",
     "这是Anna Berg。", "이 사람은 김민준입니다.")
)  # fmt: skip


@pytest.mark.parametrize("answer", ANSWERS)
def test_names_are_read_from_the_answer(answer):
    metadata = [None, {"Question": None}, {"Question": "Who is this person?", "Answer": answer}]
    if ANSWERS[answer] is not None:
        assert person_name(metadata) == ANSWERS[answer]
    else:
        with pytest.raises(ValueError, match="the naming question is answered .*, which holds no name"):
            person_name(metadata)
