"""What the commands share that draw a curve: a model compressed further and further, every point of it measured.

From the command line to a run:

    curve       settings that all of them have
    schedule    settings of when to prune and how far, and the calendar that follows
    targets     what a low-rank run aims at: ranks, energies, budgets
    pruning     a run: model, speech, control, points, report
    sweep       its loop: train, prune, train on, resume to the bit
    recovery    training of one compressed model, and the labelled speech that all training is on

What happens at a point of it, in the words of `compress.plan`:

    evidence    what speech, loss and costs say to the steps of a plan
    events      one step on a model in training: cut or mask parameters, moments and masks
    units       runs on heads and on feed-forward units
    planning    runs that plan for a budget
    search      which options every block takes for it
    options     what the options are, and what each costs
    choosing    the choice of a subnet for a budget
    leaving     utterances that leave a model early, and what that saves

What is measured, and read again:

    points      a point: saved, evaluated, costed, timed, probed
    measures    what a point's row says
    runs        rows of whole runs, whoever wrote them
    retime      models of several runs timed again, together
    bare        what stays of a model whatever is pruned
    survivors   which heads each point kept
"""
