r"""FlowLet (Danesed/FlowLet): brain MRI by age, a flow in Haar coefficients.

Its state is the orthonormal transform W x of a volume in [-1, 1], which is our wavelet space with
mu = 0 and s = 1; bands and signs are those of WDM (see `wdm`) along the axes of its arrays.

Its time runs from noise (0) to data (1), ours from data to noise, so that its network reads 1 - t
and gives the velocity with the opposite sign: the head is negated. What it says of four paths

    rectified, cfm    alpha = 1 - t, sigma = t; two ways to write one velocity
    trigonometric     alpha = cos(pi t / 2), sigma = sin(pi t / 2)
    vp_diffusion      alpha = exp(-T(t) / 2), T(t) = 0.1 t + 9.95 t^2

is the velocity of the flow along each. Attention to its one token is an affine map of the token,
see `ContextAttention`: the queries and keys of it say nothing and are left out.
"""
